"From a recording to what a network takes: reading, front ends, fingerprints, and synthesised sounds for examples and tests."
