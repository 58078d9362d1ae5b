//! Places in a stream of a container's output, found again by what the engine says of its pieces.
//!
//! A count of bytes is no place: engines drop the oldest output when a log file is full, and a later read then
//! begins elsewhere. A [`Position`] names a piece by its time stamp. [`Seeker`] looks for the piece in a new read
//! and tells whether it is there.

use std::collections::VecDeque;

use aegis_proto::aegis::runtime::v1 as pb;

/// Bytes between two marks of a [`Track`]: a mark for each short line would take more memory than the lines.
const MARK_BYTES: u64 = 4 * 1024;

/// Bytes after the beginning of a piece of one stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// The engine's time stamp of the piece.
    pub time: String,
    /// Number of the piece among consecutive pieces of the stream with this stamp, from 1.
    pub ordinal: u32,
    /// May go beyond the piece, into those that follow.
    pub bytes: u64,
}

impl Position {
    pub fn to_wire(&self) -> pb::OutputPosition {
        pb::OutputPosition { time: self.time.clone(), ordinal: self.ordinal, bytes: self.bytes }
    }

    pub fn from_wire(wire: pb::OutputPosition) -> Self {
        Self { time: wire.time, ordinal: wire.ordinal, bytes: wire.bytes }
    }
}

/// Follows the pieces of one stream from the beginning of a read to a wanted position, and behind it.
#[derive(Debug)]
pub struct Seeker {
    wanted: Option<Position>,
    /// Bytes that are still to be skipped since the wanted piece.
    skip: u64,
    time: String,
    ordinal: u32,
    /// All pieces so far bear one stamp: the beginning of a line may be missing.
    is_first_line: bool,
    /// The position may belong to another part of the same line, or was missing.
    is_doubtful: bool,
}

impl Seeker {
    pub fn new(wanted: Option<Position>) -> Self {
        let is_doubtful = wanted.is_none();
        let time = String::new();
        Self { wanted, skip: 0, time, ordinal: 0, is_first_line: true, is_doubtful }
    }

    /// Returns a seeker that skips `bytes` from the beginning of the read.
    pub fn behind(bytes: u64) -> Self {
        Self { skip: bytes, ..Self::new(None) }
    }

    /// Returns the number of the piece's bytes that come before the wanted position.
    pub fn pass(&mut self, time: &[u8], length: usize) -> usize {
        if self.ordinal > 0 && self.time.as_bytes() == time {
            self.ordinal += 1;
            // Found in a first line of several parts: some before them may be missing.
            self.is_doubtful |= self.is_first_line && self.wanted.is_none();
        } else {
            self.is_first_line = self.ordinal == 0;
            self.time = String::from_utf8_lossy(time).into_owned();
            self.ordinal = 1;
        }
        if let Some(wanted) = &self.wanted {
            if wanted.time != self.time || wanted.ordinal != self.ordinal {
                return length;
            }
            self.is_doubtful = self.is_first_line && self.ordinal > 1;
            self.skip = wanted.bytes;
            self.wanted = None;
        }
        let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(length);
        self.skip -= skipped as u64;
        skipped
    }

    /// Beginning of the latest piece.
    pub fn piece(&self) -> Position {
        Position { time: self.time.clone(), ordinal: self.ordinal, bytes: 0 }
    }

    /// True while the wanted position was not seen.
    pub fn is_seeking(&self) -> bool {
        self.wanted.is_some()
    }

    /// True where only an engine that dropped nothing makes the place certain.
    pub fn is_doubtful(&self) -> bool {
        self.is_doubtful
    }
}

/// Positions of the bytes that were taken of a stream, by their number since the read's beginning.
#[derive(Debug, Default)]
pub struct Track {
    marks: VecDeque<(u64, Position)>,
}

impl Track {
    /// Notes that `position` is the place of byte number `offset`.
    pub fn mark(&mut self, offset: u64, position: impl FnOnce() -> Position) {
        let is_due = self.marks.back().is_none_or(|(last, _)| offset.saturating_sub(*last) >= MARK_BYTES);
        if is_due {
            self.marks.push_back((offset, position()));
        }
    }

    /// Returns the position of byte number `offset`, and forgets marks before it.
    pub fn position(&mut self, offset: u64) -> Option<Position> {
        while self.marks.get(1).is_some_and(|(next, _)| *next <= offset) {
            self.marks.pop_front();
        }
        let (at, position) = self.marks.front()?;
        let bytes = position.bytes + offset.checked_sub(*at)?;
        Some(Position { bytes, ..position.clone() })
    }

    /// Forgets marks that no byte from `offset` on needs.
    pub fn forget_before(&mut self, offset: u64) {
        let _ = self.position(offset);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pieces with their stamps; the parts of a long line share one.
    const PIECES: [(&str, &str); 7] =
        [("1", "a\n"), ("2", "xx"), ("2", "xx"), ("2", "y\n"), ("5", "b\n"), ("3", "c\n"), ("6", "d\n")];

    fn rest(wanted: &Option<Position>, pieces: &[(&str, &str)]) -> (String, bool, bool) {
        let mut seeker = Seeker::new(wanted.clone());
        let text = pieces.iter().map(|(time, data)| &data[seeker.pass(time.as_bytes(), data.len())..]);
        (text.collect(), seeker.is_seeking(), seeker.is_doubtful())
    }

    #[test]
    fn seeker_continues_at_each_byte_by_any_mark() {
        let all = PIECES.iter().map(|(_, data)| *data).collect::<String>();
        let (mut seeker, mut marks, mut offset) = (Seeker::new(None), Vec::new(), 0);
        for (time, data) in PIECES {
            seeker.pass(time.as_bytes(), data.len());
            marks.push((offset, seeker.piece()));
            offset += data.len();
        }
        for at in 0..=all.len() {
            for (begin, mark) in marks.iter().filter(|(begin, _)| *begin <= at) {
                let wanted = Some(Position { bytes: (at - begin) as u64, ..mark.clone() });
                let (text, is_seeking, _) = rest(&wanted, &PIECES);
                assert_eq!((text.as_str(), is_seeking), (&all[at..], false), "{at}: {wanted:?}");
            }
        }
    }

    #[test]
    fn dropped_piece_is_not_found_and_lost_parts_are_doubtful() {
        let wanted = Some(Position { time: "2".into(), ordinal: 2, bytes: 2 });
        assert_eq!(rest(&wanted, &PIECES), ("y\nb\nc\nd\n".into(), false, false));
        assert_eq!(rest(&wanted, &PIECES[4..]), (String::new(), true, false));
        // The first part of the line is gone: the second one of the rest is not the second one.
        assert!(rest(&wanted, &PIECES[2..]).2);
        assert!(rest(&None, &PIECES).2);
    }

    #[test]
    fn track_gives_places_between_sparse_marks() {
        let mut track = Track::default();
        let mark = |ordinal| move || Position { time: "t".into(), ordinal, bytes: 3 };
        track.mark(0, mark(1));
        track.mark(1, mark(2));
        track.mark(MARK_BYTES, mark(3));
        let at = |ordinal, bytes| Some(Position { time: "t".into(), ordinal, bytes });
        assert_eq!(track.position(10), at(1, 13));
        assert_eq!(track.position(MARK_BYTES + 1), at(3, 4));
        assert_eq!(track.position(0), None, "forgotten");
    }
}
