//! `leasehold digest`.

use std::io::Read;
use std::path::Path;

use anyhow::{Context, ensure};
use clap::Args;

use super::{Failure, print};
use crate::app::arguments;

/// No sidecar reads a longer body to compare it.
const BODY_BYTES_MAX: u64 = 64 << 20;

/// The call whose digest is wanted.
#[derive(Debug, Args)]
pub(super) struct Digest {
    /// The value of the call's `Content-Type`, exactly as it will be sent; without it there is none
    #[arg(long, value_name = "TYPE")]
    content_type: Option<String>,
    /// A file with the body of the call, or `-` for standard input; without it there is none
    #[arg(long, value_name = "FILE")]
    body: Option<std::path::PathBuf>,
    /// The method of the call
    #[arg(value_name = "METHOD")]
    method: String,
    /// The path of the call, with its query
    #[arg(value_name = "PATH")]
    target: String,
}

impl Digest {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let body = self.body.as_deref().map(read).transpose().map_err(Failure::Usage)?.unwrap_or_default();
        let digest = arguments::digest(&self.method, &self.target, self.content_type.as_deref(), &body);
        print::out(&format!("{}\n", digest.map_err(Failure::Usage)?));
        Ok(())
    }
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let named = || format!("--body {}", path.display());
    let mut body = Vec::new();
    let read = if path == Path::new("-") {
        std::io::stdin().lock().take(BODY_BYTES_MAX + 1).read_to_end(&mut body)
    } else {
        let file = std::fs::File::open(path).with_context(named)?;
        file.take(BODY_BYTES_MAX + 1).read_to_end(&mut body)
    };
    let read = read.with_context(named)? as u64;
    ensure!(read <= BODY_BYTES_MAX, "{}: it is larger than 64 MiB, and no sidecar compares such a body", named());
    Ok(body)
}
