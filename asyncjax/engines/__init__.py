"""What the engines are made of; `emulate`, `replay`, `threads` and `cluster`, beside this package, are built on it."""
