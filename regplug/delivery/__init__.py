"""How a formula reaches the loss, the gradients and the weights."""
