//! A packed file as it is written: counted, hashed, and bounded.

use std::{
    fs::File,
    io::{self, Write},
};

use sha2::{Digest as _, Sha256};

/// The file passed what is taken.
#[derive(Debug, thiserror::Error)]
#[error("packed, it has more than {0} bytes")]
pub struct TooLarge(u64);

#[derive(Debug)]
pub struct Written {
    out: File,
    hash: Sha256,
    bytes: u64,
    bytes_max: u64,
}

impl Written {
    pub fn new(out: File, bytes_max: u64) -> Self {
        Self { out, hash: Sha256::new(), bytes: 0, bytes_max }
    }

    /// On disk when this returns: digest in hex, and bytes.
    pub fn finish(self) -> io::Result<(String, u64)> {
        self.out.sync_all()?;
        Ok((hex::encode(self.hash.finalize()), self.bytes))
    }
}

impl Write for Written {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.bytes + data.len() as u64 > self.bytes_max {
            return Err(io::Error::other(TooLarge(self.bytes_max)));
        }
        let written = self.out.write(data)?;
        self.hash.update(&data[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
