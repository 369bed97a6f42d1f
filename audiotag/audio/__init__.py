"From a recording to what a network takes: reading, front ends, fingerprints, and synthesized sounds."
