//! `aegis`
#![allow(dead_code)]
mod codes;
mod server;
mod tools;
fn main() {}
