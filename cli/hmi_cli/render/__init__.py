"""How answers look: pure functions from objects to text, with no request and no decision in them."""
