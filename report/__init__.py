"""From run folders to what a paper needs: tables, figures, significance, and one page to look at."""
