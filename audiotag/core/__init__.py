"What every module may use: errors, settings, files, progress, seeds and metrics."
