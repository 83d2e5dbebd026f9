"""Stage 2: the training of systems from a feature cache into a run folder."""

# what the fork server loads for the workers of this stage, as early as it is known that there will be some
PRELOADED = ("amber2_train.worker", "amber2_train.fold_data", "amber2_train.stacked.loop")
