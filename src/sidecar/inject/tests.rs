use super::*;

fn injected(fields: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap());
    }
    let authority = HeaderValue::from_static("backend.test");
    let passage = Passage { authority: &authority, upgrade: false, grpc: false };
    inject(Method::GET, PathAndQuery::from_static("/a"), headers, passage, None).unwrap().headers
}

#[test]
fn a_spoofable_field_never_passes_in_any_spelling() {
    for name in [
        "Authorization",
        "Proxy-Authorization",
        "Cookie",
        "X-Leasehold-Grant",
        "x_leasehold_subject",
        "X-Forwarded-For",
        "X_Forwarded_Proto",
        "Forwarded",
        "X-Real-IP",
        "X-Forwarded-Client-Cert",
        "Client-Cert",
        "X-Original-URL",
        "X-Rewrite-URL",
        "X-Middleware-Subrequest",
        "X-Remote-User",
        "Remote_User",
        "Impersonate-User",
        "Impersonate-Extra-Scopes",
        "Kubectl-Command",
        "Via",
        "TE",
        "Upgrade",
        "Keep-Alive",
        "Proxy-Connection",
        "X-Vault-Token",
        "X-Auth-Request-User",
        "X-HTTP-Method-Override",
    ] {
        let headers = injected(&[(name, "evil"), ("x-harmless", "1")]);
        assert!(!headers.values().any(|v| v == "evil"), "{name} reached the backend");
        assert_eq!(headers["x-harmless"], "1");
    }
}

#[test]
fn what_connection_names_goes_and_ours_stays() {
    let headers = injected(&[("connection", "x-hop, close"), ("x-hop", "1"), ("host", "evil.test")]);
    assert!(!headers.contains_key("x-hop") && !headers.contains_key("connection"));
    assert_eq!(headers["host"], "backend.test");
}

#[test]
fn a_query_credential_is_added_once_and_never_mixed_with_the_callers() {
    let added = with_parameter(&PathAndQuery::from_static("/a?b=1"), "token", "s/e c").unwrap();
    assert_eq!(added.as_str(), "/a?b=1&token=s%2Fe%20c");
    for taken in ["/a?token=x", "/a?b=1&%74oken=x", "/a?token"] {
        let target = PathAndQuery::try_from(taken).unwrap();
        assert_eq!(with_parameter(&target, "token", "s"), Err(InjectError::ReservedParameter), "{taken}");
    }
}
