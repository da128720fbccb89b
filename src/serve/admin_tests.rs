//! Who may command the daemon: `firekeep` on this machine, and no web page.

use super::fixture::{Answer, Server, ask};
use crate::mirror::memory::MemoryStore;

async fn control(server: &Server, method: &str, path: &str, headers: &str) -> Answer {
    ask(server.admin, method, path, headers).await
}

#[tokio::test]
async fn commands_need_the_header_and_no_page() {
    let server = Server::start(&MemoryStore::default()).await;
    let ours = "x-firekeep-control: 1\r\n";
    let good = control(&server, "GET", "/control/echo?a=b%20c&d=", ours).await;
    assert_eq!(good.status, 200);
    assert_eq!(good.json(), serde_json::json!({ "a": "b c", "d": "" }));
    for headers in ["", "x-firekeep-control: 1\r\norigin: https://evil.test\r\n"] {
        let refused = control(&server, "GET", "/control/echo", headers).await;
        assert_eq!(refused.status, 403, "{headers:?}");
    }
    let missing = control(&server, "GET", "/control/fail", ours).await;
    assert_eq!(missing.status, 404, "a command is no question");
    let failed = control(&server, "POST", "/control/fail", ours).await;
    assert_eq!(failed.status, 500);
    assert_eq!(failed.json()["error"], "as asked");
    assert_eq!(
        control(&server, "DELETE", "/control/fail", ours).await.status,
        404
    );
}

#[test]
fn only_addresses_and_localhost_are_plain_hosts() {
    for (host, plain) in [
        ("127.0.0.1:2586", true),
        ("localhost:2586", true),
        ("[::1]:2586", true),
        ("10.0.0.1", true),
        ("evil.test:2586", false),
        ("127.0.0.1.evil.test", false),
        ("", false),
    ] {
        assert_eq!(super::admin::is_plain(host), plain, "{host}");
    }
}
