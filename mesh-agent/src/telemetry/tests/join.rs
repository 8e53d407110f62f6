//! Every connection and every record is shown exactly once.

use std::collections::BTreeSet;

use mesh_common::{ConnRecord, Direction, Path};
use proptest::prelude::*;

use crate::telemetry::{conn::join_key, rows::join};

#[derive(Clone, Debug)]
struct Kernel {
    cookie: u64,
    record: ConnRecord,
}

fn kernel() -> impl Strategy<Value = Kernel> {
    (1..40_u64, any::<bool>(), 0..3_u8, 0..40_u64).prop_map(|(cookie, inbound, path, agent)| {
        Kernel {
            cookie,
            record: ConnRecord {
                direction: if inbound {
                    Direction::Inbound
                } else {
                    Direction::Outbound
                } as u8,
                path: [Path::Proxied, Path::Passthrough, Path::Unmeshed][usize::from(path)] as u8,
                agent_cookie: if inbound { agent } else { 0 },
                ..ConnRecord::default()
            },
        }
    })
}

proptest! {
    #[test]
    fn nothing_is_lost_doubled_or_joined_wrongly(
        live in proptest::collection::btree_set(1..40_u64, 0..20),
        records in proptest::collection::vec(kernel(), 0..30),
    ) {
        // A map has one value a key.
        let mut seen = BTreeSet::new();
        let records: Vec<_> = records.into_iter().filter(|k| seen.insert(k.cookie)).collect();
        let joined = join(
            live.iter().map(|key| (*key, *key)),
            records.iter().map(|k| (k.cookie, k.record)),
        );
        let conns: Vec<u64> = joined.iter().filter_map(|j| j.conn).collect();
        prop_assert_eq!(conns.len(), live.len());
        prop_assert_eq!(conns.into_iter().collect::<BTreeSet<_>>(), live.clone());
        let cookies: Vec<u64> = joined.iter().filter_map(|j| Some(j.record?.0)).collect();
        prop_assert_eq!(cookies.len(), records.len());
        prop_assert_eq!(cookies.into_iter().collect::<BTreeSet<_>>(), seen);
        for pair in &joined {
            match (pair.conn, pair.record) {
                (Some(key), Some((cookie, record))) => {
                    prop_assert_eq!(join_key(cookie, &record), Some(key));
                    prop_assert_eq!(record.path, Path::Proxied as u8);
                }
                (None, Some((cookie, record))) => {
                    // Alone, because nobody has its key or another record took it.
                    if let Some(key) = join_key(cookie, &record) {
                        let rival = joined.iter().any(|other| other.conn == Some(key) && other.record.is_some());
                        prop_assert!(!live.contains(&key) || rival);
                    }
                }
                (Some(key), None) => {
                    let has = records.iter().any(|k| join_key(k.cookie, &k.record) == Some(key));
                    prop_assert!(!has, "{key} has a record");
                }
                (None, None) => prop_assert!(false, "empty pair"),
            }
        }
    }
}
