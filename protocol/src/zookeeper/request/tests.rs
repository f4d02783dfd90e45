//! Requests survive their bytes, and no bytes panic.

use proptest::prelude::*;

use super::*;
use crate::zookeeper::Id;

fn text() -> impl Strategy<Value = String> {
    "(/[a-zé]{0,5}){0,3}"
}

fn data() -> impl Strategy<Value = Option<Bytes>> {
    proptest::option::of(proptest::collection::vec(any::<u8>(), 0..9).prop_map(Bytes::from))
}

fn acl() -> impl Strategy<Value = Vec<Acl>> {
    let entry =
        (any::<i32>(), text(), text()).prop_map(|(perms, scheme, id)| Acl { perms, id: Id { scheme, id } });
    proptest::collection::vec(entry, 0..3)
}

fn write_part() -> impl Strategy<Value = Request> {
    let kind = proptest::sample::select(vec![op::CREATE, op::CREATE2, op::CREATE_CONTAINER, op::CREATE_TTL]);
    prop_oneof![
        (kind, text(), data(), acl(), any::<i32>(), any::<i64>()).prop_map(
            |(op, path, data, acl, flags, ttl)| {
                let ttl_ms = (op == op::CREATE_TTL).then_some(ttl);
                Request::Create(Create { op, path, data, acl, flags, ttl_ms })
            }
        ),
        (text(), any::<i32>()).prop_map(|(path, version)| Request::Delete { path, version }),
        (text(), any::<i32>()).prop_map(|(path, version)| Request::Check { path, version }),
        (text(), data(), any::<i32>()).prop_map(|(path, data, version)| Request::SetData {
            path,
            data,
            version
        }),
    ]
}

fn read_part() -> impl Strategy<Value = Request> {
    prop_oneof![
        (text(), any::<bool>()).prop_map(|(path, watch)| Request::GetData { path, watch }),
        (text(), any::<bool>()).prop_map(|(path, watch)| Request::GetChildren { path, watch }),
    ]
}

fn watches() -> impl Strategy<Value = SetWatches> {
    let list = || proptest::collection::vec(text(), 0..3);
    (any::<i64>(), list(), list(), list(), list(), list()).prop_map(
        |(zxid, data, exist, child, persistent, recursive)| SetWatches {
            relative_zxid: Zxid::new(zxid),
            data,
            exist,
            child,
            persistent,
            recursive,
        },
    )
}

fn request() -> impl Strategy<Value = Request> {
    prop_oneof![
        write_part(),
        read_part(),
        proptest::collection::vec(write_part(), 0..4).prop_map(Request::Multi),
        proptest::collection::vec(read_part(), 0..4).prop_map(Request::MultiRead),
        watches().prop_map(Request::SetWatches2),
        watches().prop_map(|all| Request::SetWatches(SetWatches {
            persistent: Vec::new(),
            recursive: Vec::new(),
            ..all
        })),
        (text(), acl(), any::<i32>()).prop_map(|(path, acl, version)| Request::SetAcl { path, acl, version }),
        (text(), any::<i32>()).prop_map(|(path, kind)| Request::RemoveWatches { path, kind }),
        (text(), any::<i32>()).prop_map(|(path, mode)| Request::AddWatch { path, mode }),
        (any::<i32>(), text(), data()).prop_map(|(kind, scheme, auth)| Request::Auth {
            kind,
            scheme,
            auth: auth.unwrap_or_default()
        }),
        (proptest::option::of(text()), any::<i64>()).prop_map(|(joining, config)| Request::Reconfig {
            joining,
            leaving: None,
            members: Some(String::new()),
            config
        }),
        Just(Request::Ping),
        Just(Request::CloseSession),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn requests_survive_their_bytes_and_every_cut_keeps_the_header(
        request in request(),
        xid: i32,
        cut in 8usize..200,
    ) {
        let mut out = BytesMut::new();
        request.encode(xid, &mut out);
        let whole = out.freeze();
        let header = RequestHeader { xid, op: request.op() };
        prop_assert_eq!(Request::decode(whole.clone()), Ok((header, Ok(request))));
        if cut < whole.len() {
            let (found, body) = Request::decode(whole.slice(..cut)).expect("the header is whole");
            prop_assert_eq!(found, header);
            prop_assert!(body.is_err());
        }
    }

    #[test]
    fn no_bytes_panic(op in -12i32..110, bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
        let mut payload = BytesMut::new();
        payload.extend_from_slice(&7i32.to_be_bytes());
        payload.extend_from_slice(&op.to_be_bytes());
        payload.extend_from_slice(&bytes);
        let _ = Request::decode(payload.freeze());
        let _ = ConnectRequest::decode(Bytes::from(bytes));
    }
}

#[test]
fn a_connect_request_without_the_read_only_byte_is_44_bytes() {
    let mut request = ConnectRequest {
        protocol_version: 0,
        last_zxid_seen: Zxid::new(5),
        timeout_ms: 3000,
        session: SessionId::new(0),
        password: Bytes::from_static(&[0; 16]),
        read_only: None,
    };
    for (read_only, length) in [(None, 44), (Some(true), 45)] {
        request.read_only = read_only;
        let mut out = BytesMut::new();
        request.encode(&mut out);
        assert_eq!(out.len(), length);
        assert_eq!(ConnectRequest::decode(out.freeze()).as_ref(), Ok(&request));
    }
}

#[test]
fn a_read_in_a_multi_of_writes_is_refused() {
    let mixed = Request::Multi(vec![Request::GetData { path: "/a".to_owned(), watch: false }]);
    let mut out = BytesMut::new();
    mixed.encode(1, &mut out);
    let (_, body) = Request::decode(out.freeze()).expect("the header is whole");
    assert_eq!(body, Err(JuteError::Part { op: op::GET_DATA }));
}
