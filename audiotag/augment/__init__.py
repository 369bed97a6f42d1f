"Augmentations of waves, of spectrograms, and inside the network."
