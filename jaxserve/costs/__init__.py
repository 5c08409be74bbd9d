"""What a step costs: written down, fitted to measured steps, or derived from a machine's peak rates."""
