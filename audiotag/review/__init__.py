"HTML reports of runs, label review, and checks of the cross-validation."
