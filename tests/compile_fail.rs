//! Proofs cannot be forged: these programs do not compile.

#![allow(missing_docs)]

#[test]
fn proofs_are_made_in_one_place() {
    trybuild::TestCases::new().compile_fail("tests/compile_fail/*.rs");
}
