# Shorthands. What a change must pass is `scripts/test`, which continuous integration runs too.

# Everything.
default: check

check: fmt lint test doc deny

# The layout of the code.
fmt:
    cargo fmt --check

# Lints, all of them errors.
lint:
    cargo clippy --all-targets -- -D warnings

# Unit and integration tests.
test:
    cargo test

# The documentation, without a broken link.
doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --document-private-items

# Licences, advisories, sources; skipped, and said so, where cargo-deny is not installed.
deny:
    @if command -v cargo-deny > /dev/null; then cargo deny check; else echo "cargo-deny is not installed: skipped"; fi

# The figures in README.
bench:
    cargo bench
