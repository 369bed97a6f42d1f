"From a competition's folder to batches: clip tables, folds, feature stores, crops, and checks of a submission."
