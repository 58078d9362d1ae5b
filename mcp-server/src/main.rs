//! `aegis`
#![allow(dead_code)]
mod codes;
mod rest;
mod server;
mod tools;
mod transport;
fn main() {}
