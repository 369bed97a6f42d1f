"Kaggle's side: where inputs are mounted, packing of datasets and wheels, and the `kaggle` client."
