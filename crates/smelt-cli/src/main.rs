//! smelt.
fn main() {}
