"From packed weights to a submission within a time limit. Nothing here needs fastai or nbdev."
