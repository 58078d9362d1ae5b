//! Content that travels with an execution: its workspace and its image.

/// Pieces are about this large; each is one message.
pub const PIECE_BYTES: usize = 128 * 1024;

/// What is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    Workspace {
        digest: String,
        bytes: u64,
    },
    Image {
        reference: String,
        digest: String,
        /// About.
        bytes: u64,
    },
}

/// An image that the controller can send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageOffer {
    /// Of what makes it the same on any engine.
    pub digest: String,
    /// As Docker names it: `amd64`.
    pub architecture: String,
    /// It was made there, and is meant, whatever the node has under its name.
    pub exact: bool,
}
