"""What an instance costs an hour."""

PRICES_AS_OF = "on demand, us-east-1, Linux, as listed in 2025"
USD_PER_HOUR = {
    "trn1.2xlarge": 1.34,
    "trn1.32xlarge": 21.50,
    "trn1n.32xlarge": 24.78,
    "inf2.48xlarge": 12.98,
}
"""trn2.48xlarge is sold by capacity blocks, at prices that change: state yours."""
