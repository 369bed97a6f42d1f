"Look at data and runs: reports, doubtful labels, and whether the cross-validation can be trusted."
