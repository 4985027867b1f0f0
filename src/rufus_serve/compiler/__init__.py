"""Makes artifacts ahead of time: shards for CPU followers, graphs and shards for Neuron ones."""
