"""How many groups a load needs, by simulating them."""
