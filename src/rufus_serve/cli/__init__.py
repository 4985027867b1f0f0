"""The `rufus-serve` command."""
