//! The formats of a repository: bytes to values and back, with no policy.
//!
//! Everything here is pure and works on slices: [`cbor`] reads and writes strict DAG-CBOR, [`car`] splits
//! containers and hashes every block, [`commit`] decodes the signed root of a repository, [`signing_key`]
//! checks its signature, [`record`] looks into records for blobs, [`json`] shows a record, [`mst`] builds and
//! walks the tree, [`proof`] undoes a commit's operations on a part of it, and [`export`] streams a proven
//! repository out. Whether something may be stored, served or thrown away is decided further down the flow.
//!
//! Architecture invariant: hostile bytes cost at most time and memory in proportion to their own length.
//! Nothing here panics on them, recurses deeper than a named limit, or allocates a length that was only
//! declared.

pub mod car;
pub mod cbor;
pub mod commit;
pub mod export;
pub mod json;
pub mod mst;
pub mod proof;
pub mod record;
pub mod signing_key;
