//! Who this server is: its cell, its number there, its lives, and the membership with which it began.
//!
//! A number stands for one memory (design 1.11). The file is written when a cell is formed or a new server is let in,
//! before the server says anything under that number, and again at each start, when the life is counted up. A
//! directory without it belongs to nobody: it never takes up a number that was given out before.

use std::path::Path;
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use loggos_storage::disk::Disk;

use super::block::Block;
use crate::error::LedgerError;
use crate::paxos::ballot::{CellId, Incarnation, ServerId};
use crate::paxos::codec::{decode_config, encode_config};
use crate::paxos::event;
use crate::paxos::membership::Config;

/// A membership of the most members fits.
const COPY_LEN: usize = 64 << 10;

/// What a directory says about its server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The cell; none before the server belongs to one.
    pub cell: CellId,
    /// Its number there; none before.
    pub server: ServerId,
    /// The lives so far.
    pub incarnation: Incarnation,
    /// Drawn when the directory was made: asking twice to be let in gives one number.
    pub token: u64,
    /// The membership with which the cell was formed: the tree's first content follows from it.
    pub founding: Config,
    /// The membership when this server got its number; the same for a founder.
    pub entry: Config,
}

impl Identity {
    /// Whether the directory belongs to a server of a cell.
    pub const fn is_member(&self) -> bool {
        !self.server.is_none()
    }

    /// Who the engine is in this life.
    pub const fn of_engine(&self) -> event::Identity {
        event::Identity { cell: self.cell, server: self.server, incarnation: self.incarnation }
    }

    fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u128(self.cell.raw());
        out.put_u16(self.server.raw());
        out.put_u64(self.incarnation.raw());
        out.put_u64(self.token);
        for config in [&self.founding, &self.entry] {
            let bytes = encode_config(config);
            out.put_u32(u32::try_from(bytes.len()).expect("a membership is small"));
            out.put_slice(&bytes);
        }
        out.freeze()
    }

    fn decode(mut bytes: Bytes) -> Option<Self> {
        let cell = CellId::new(bytes.try_get_u128().ok()?);
        let server = ServerId::new(bytes.try_get_u16().ok()?);
        let incarnation = Incarnation::new(bytes.try_get_u64().ok()?);
        let token = bytes.try_get_u64().ok()?;
        let mut config = || {
            let len = bytes.try_get_u32().ok()? as usize;
            (len <= bytes.len()).then(|| decode_config(bytes.split_to(len)).ok()).flatten()
        };
        Some(Self { cell, server, incarnation, token, founding: config()?, entry: config()? })
    }
}

/// The identity's file.
#[derive(Debug)]
pub struct IdentityFile {
    block: Block,
    now: Identity,
}

impl IdentityFile {
    /// Opens it in `dir`, which is there, and counts this life. `token` is taken for a new directory.
    pub fn open(disk: &Arc<dyn Disk>, dir: &Path, token: u64) -> Result<Self, LedgerError> {
        let path = dir.join("identity");
        let (block, found) = Block::open(disk, &path, COPY_LEN)?;
        let mut now = match found {
            Some(bytes) => Identity::decode(bytes.into()).ok_or_else(|| LedgerError::Damaged {
                path: path.clone(),
                why: "it is of another version".to_owned(),
            })?,
            None => Identity { token, ..Identity::default() },
        };
        now.incarnation = now.incarnation.next();
        let mut file = Self { block, now: Identity::default() };
        file.keep(now)?;
        disk.sync_dir(dir).map_err(|e| LedgerError::io("sync", dir, &e))?;
        Ok(file)
    }

    /// What it says.
    pub const fn get(&self) -> &Identity {
        &self.now
    }

    /// Makes it say `identity`, durably.
    pub fn keep(&mut self, identity: Identity) -> Result<(), LedgerError> {
        self.block.write(&identity.encode())?;
        self.now = identity;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use loggos_storage::disk_sim::{Faults, SimDisk};

    #[test]
    fn lives_are_counted_and_a_number_stays() {
        let disk: Arc<dyn Disk> = Arc::new(SimDisk::new(1, Faults::default()));
        let mut file = IdentityFile::open(&disk, Path::new("/"), 7).expect("new");
        assert!(!file.get().is_member());
        let member = Identity { cell: CellId::new(5), server: ServerId::new(3), ..file.get().clone() };
        file.keep(member).expect("a healthy disk");
        let file = IdentityFile::open(&disk, Path::new("/"), 8).expect("again");
        assert!(file.get().is_member());
        assert_eq!((file.get().token, file.get().incarnation), (7, Incarnation::new(2)));
    }
}
