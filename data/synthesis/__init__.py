"""What the synthetic corpus is made of: hidden emotions, raters, sentences and voices."""
