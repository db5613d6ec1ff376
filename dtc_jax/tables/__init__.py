"""The paper's tables 1 and 2 in miniature: variants trained at equal budget and measured on the generated world."""
