"Losses, training in stages over folds, where jobs run, the recipes, and what is fitted on out-of-fold scores."
