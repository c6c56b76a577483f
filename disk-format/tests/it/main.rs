//! The label under damage, torn writes, foreign signatures and random bytes.

mod claims;
mod common;
mod damage;
mod doc;
mod real_tools;
mod runs;
mod torn;
