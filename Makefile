# `make verify` is what the gate runs, and never writes; `make fix` writes.

.PHONY: verify fix

verify:
	bash .ci/run

fix:
	cargo fmt --all
	cargo clippy --release --workspace --all-targets --fix --allow-dirty
