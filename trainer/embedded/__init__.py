"""A base small enough to travel with the code: tokenizer, weights, data, and the script that makes them."""
