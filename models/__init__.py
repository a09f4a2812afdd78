"""The networks, one readable file each, their stages and the loading of official checkpoints. Needs torch."""
