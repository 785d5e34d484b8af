//! The kinds of damage.

/// How a file is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Damage {
    /// Cut off anywhere.
    Truncated,
    /// One byte of the ELF header or the program headers.
    Headers,
    /// One byte of the dynamic table.
    Dynamic,
    /// One byte of the first segment.
    FirstSegment,
    /// One byte anywhere.
    OneByte,
    /// Sixteen bytes anywhere.
    SixteenBytes,
}

impl Damage {
    pub(crate) const ALL: [Self; 6] =
        [Self::Truncated, Self::Headers, Self::Dynamic, Self::FirstSegment, Self::OneByte, Self::SixteenBytes];

    /// A damaged copy of a good library's `bytes`.
    pub(crate) fn apply(self, bytes: &[u8], random: &mut Random) -> Vec<u8> {
        let mut damaged = bytes.to_vec();
        match self {
            Self::Truncated => damaged.truncate(random.below(bytes.len())),
            Self::Headers => change(&mut damaged, 0..64 + 56 * usize::from(u16_at(bytes, 56)), random),
            Self::Dynamic => change(&mut damaged, segment(bytes, 2), random),
            Self::FirstSegment => change(&mut damaged, segment(bytes, 1), random),
            Self::OneByte => change(&mut damaged, 0..bytes.len(), random),
            Self::SixteenBytes => {
                let start = random.below(bytes.len() - 16);
                for byte in &mut damaged[start..start + 16] {
                    *byte = random.next() as u8;
                }
            }
        }
        damaged
    }
}

/// One bit or a whole byte, turn about: bits are what memory and cables lose, bytes reach further.
fn change(bytes: &mut [u8], range: std::ops::Range<usize>, random: &mut Random) {
    let place = range.start + random.below(range.len());
    let mask = if random.next() & 1 == 0 { 1 << random.below(8) } else { 1 + random.below(255) as u8 };
    bytes[place] ^= mask;
}

/// The file range of the first segment of a type. The library is a good one, so its headers are believed.
fn segment(bytes: &[u8], kind: u32) -> std::ops::Range<usize> {
    let headers = bytes[64..].chunks_exact(56).take(usize::from(u16_at(bytes, 56)));
    let mut of_kind = headers.filter(|header| header[..4] == kind.to_le_bytes());
    let header = of_kind.next().expect("a library has such a segment");
    let word = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("eight bytes")) as usize;
    word(8)..word(8) + word(32)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// Numbers that look random and are the same for the same seed: `SplitMix64` (Steele, Lea, Flood 2014).
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}
