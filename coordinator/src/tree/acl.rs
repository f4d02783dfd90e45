//! Who may do what: ZooKeeper's schemes `world`, `ip`, `digest`, `auth` and `super` (section 2.4 of its
//! programmer's guide as 3.9 does it).

use core::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use loggos_protocol::zookeeper::{Acl, Id};
use sha1::{Digest as _, Sha1};

/// Whether someone with these identities has the permission.
pub(super) fn allows(acl: &[Acl], perm: i32, ids: &[Id]) -> bool {
    acl.is_empty()
        || ids.iter().any(|id| id.scheme == "super")
        || acl.iter().any(|entry| entry.perms & perm != 0 && is_one_of(&entry.id, ids))
}

fn is_one_of(wanted: &Id, ids: &[Id]) -> bool {
    match wanted.scheme.as_str() {
        "world" => wanted.id == "anyone",
        "ip" => ids.iter().any(|id| id.scheme == "ip" && address_matches(&wanted.id, &id.id)),
        _ => ids.contains(wanted),
    }
}

/// Whether `address` lies in `pattern`, an address or a network in CIDR notation.
fn address_matches(pattern: &str, address: &str) -> bool {
    let (network, bits) = pattern.split_once('/').map_or((pattern, None), |(net, bits)| (net, Some(bits)));
    let (Ok(network), Ok(address)) = (network.parse::<IpAddr>(), address.parse::<IpAddr>()) else {
        return false;
    };
    let (network, address): (Vec<u8>, Vec<u8>) = match (network, address) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (a.octets().into(), b.octets().into()),
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.octets().into(), b.octets().into()),
        _ => return false,
    };
    let all = network.len() * 8;
    let Some(bits) = bits.map_or(Some(all), |bits| bits.parse().ok().filter(|bits| *bits <= all)) else {
        return false;
    };
    (0..bits).all(|bit| (network[bit / 8] ^ address[bit / 8]) & (0x80 >> (bit % 8)) == 0)
}

/// The ACL that is kept for one that was given: `auth` becomes the caller's identities, doubles collapse; `None`
/// for one that can't be.
pub(super) fn resolve(given: &[Acl], ids: &[Id]) -> Option<Vec<Acl>> {
    let mut kept: Vec<Acl> = Vec::new();
    let mut add = |acl: Acl| {
        if !kept.contains(&acl) {
            kept.push(acl);
        }
    };
    for entry in given {
        let id = &entry.id;
        match id.scheme.as_str() {
            "world" if id.id == "anyone" => add(entry.clone()),
            "ip" if is_network(&id.id) => add(entry.clone()),
            "digest" if is_digest(&id.id) => add(entry.clone()),
            "auth" => {
                let mut own = ids.iter().filter(|id| id.scheme != "ip" && id.scheme != "super").peekable();
                own.peek()?;
                own.for_each(|id| add(Acl { perms: entry.perms, id: id.clone() }));
            }
            _ => return None,
        }
    }
    (!kept.is_empty()).then_some(kept)
}

fn is_network(text: &str) -> bool {
    let (address, bits) = text.split_once('/').unwrap_or((text, "0"));
    let Ok(address) = address.parse::<IpAddr>() else { return false };
    let all = if address.is_ipv4() { 32 } else { 128 };
    bits.parse::<u8>().is_ok_and(|bits| bits <= all)
}

/// A user and a hash; as Java splits, colons at the end are nothing.
fn is_digest(text: &str) -> bool {
    text.trim_end_matches(':').split(':').count() == 2
}

/// The id that `user:password` proves under the scheme `digest`: `user:base64(sha1("user:password"))`.
pub fn digest_id(user_and_password: &str) -> String {
    let user = user_and_password.split(':').next().unwrap_or_default();
    format!("{user}:{}", STANDARD.encode(Sha1::digest(user_and_password)))
}

/// The ACL as it's shown to someone who may not change it: users without their digests.
pub(super) fn shown(acl: &[Acl], may_admin: bool) -> Vec<Acl> {
    let mut shown = acl.to_vec();
    if !may_admin {
        for entry in shown.iter_mut().filter(|entry| entry.id.scheme == "digest") {
            if let Some((user, _)) = entry.id.id.split_once(':') {
                entry.id.id = format!("{user}:x");
            }
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(scheme: &str, id: &str) -> Id {
        Id { scheme: scheme.to_owned(), id: id.to_owned() }
    }

    #[test]
    fn networks() {
        assert!(address_matches("10.0.0.0/8", "10.200.3.4"));
        assert!(!address_matches("10.0.0.0/8", "11.0.0.1"));
        assert!(address_matches("127.0.0.1", "127.0.0.1"));
        assert!(address_matches("fe80::/10", "fe80::1"));
        assert!(!address_matches("10.0.0.0/99", "10.0.0.1"));
    }

    #[test]
    fn what_can_be_an_id() {
        // As a server of ZooKeeper 3.8 answered.
        for good in ["10.0.0.0/32", "10.0.0.0", "::1/128", "::1"] {
            assert!(is_network(good), "{good}");
        }
        for bad in ["10.0.0.0/33", "::1/129", "10.0.0.1/", "10.0.0", "10.0.0.1/-1", ""] {
            assert!(!is_network(bad), "{bad}");
        }
        for good in ["u:h", "u:h:", ":h"] {
            assert!(is_digest(good), "{good}");
        }
        for bad in ["u:", "u", "", ":", "u:h:x"] {
            assert!(!is_digest(bad), "{bad}");
        }
        assert_eq!(digest_id("super:test"), "super:D/InIHSb7yEEbrWz8b9l71RjZJU=");
    }

    #[test]
    fn auth_stands_for_who_is_authenticated() {
        let auth = [Acl { perms: 31, id: id("auth", "") }];
        assert_eq!(resolve(&auth, &[id("ip", "1.2.3.4")]), None);
        let me = id("digest", "me:hash");
        let resolved = resolve(&auth, &[id("ip", "1.2.3.4"), me.clone()]).expect("someone");
        assert_eq!(resolved, [Acl { perms: 31, id: me.clone() }]);
        assert!(allows(&resolved, 1, &[me]) && !allows(&resolved, 1, &[id("digest", "other:hash")]));
        assert_eq!(shown(&resolved, false)[0].id.id, "me:x");
    }
}
