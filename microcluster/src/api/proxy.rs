//! Requests for one member, by `?target=NAME`: run here if that is this one, else passed on to it, upgrades too.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use futures_util::future::BoxFuture;
use http::header::{CONNECTION, HOST, UPGRADE};
use http::{HeaderValue, StatusCode, Uri, Version};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use microcluster_client::{Address, Name};
use tokio::io::{AsyncRead, AsyncWrite};

use super::caller::removal_of;
use super::forward::{self, Outcome};
use crate::cluster::Node;
use crate::db::Patience;
use crate::error::Error;
use crate::state::State;
use crate::tasks::Tasks;

/// How long a member is waited for that says nothing. What it was asked may take longer: it says meanwhile that it is there.
const PATIENCE: Patience = Patience { silence: Duration::from_millis(1_000), least: Duration::from_millis(500) };

/// Passes a request on to the member that it is for, unless that is this one or nobody in particular.
pub(super) async fn to_target(state: &State, request: Request) -> Result<Outcome, Error> {
    let Some(name) = target(request.uri())? else {
        return Ok(Outcome::Here(request));
    };
    let node = state.node()?;
    if name == node.name {
        return Ok(Outcome::Here(request));
    }
    if forward::is_forwarded(&request) {
        // Whoever passed it on has taken this member for another one. One hop, never two.
        return Err(Error::not_found(format!("this is the member {}, not {name}", node.name)));
    }
    let address = address(&node, &name).await?;
    let method = request.method().clone();
    tokio::select! {
        biased;
        passed_on = pass_on(state, &node, &name, address, request) => passed_on.map(Outcome::Answered),
        () = gone(&node, &name, address) => {
            let silent = format!("the member {name} does not answer");
            Err(match method.is_safe() {
                true => Error::unavailable(silent).retry_after(1),
                false => Error::timeout(format!("{silent}; whether it has done what it was asked for is unknown")),
            })
        }
    }
}

/// Done when the member does not answer any more.
async fn gone(node: &Node, name: &Name, address: Address) {
    let id = node.db.status().nodes.iter().find(|(_, peer)| peer.name == name.as_str()).map(|(id, _)| *id);
    match id {
        Some(id) => node.db.gone(id, &address.to_string(), PATIENCE).await,
        // It is not in Raft yet, or no more.
        None => std::future::pending().await,
    }
}

async fn pass_on(
    state: &State,
    node: &Arc<Node>,
    name: &Name,
    address: Address,
    request: Request,
) -> Result<Response, Error> {
    if request.version() == Version::HTTP_11 && request.headers().contains_key(UPGRADE) {
        let removal = removal_of(state, request.extensions().get(), request.extensions().get());
        let stream = node.peers.stream(address).await.map_err(|e| {
            Error::unavailable(format!("the member {name} cannot be reached")).retry_after(1).caused_by(e)
        })?;
        upgrade(stream, address, request, node.transports(), removal).await
    } else {
        forward::pass_on(&node.peers.client(address), request).await
    }
}

/// The member that a request is for.
fn target(uri: &Uri) -> Result<Option<Name>, Error> {
    let pairs = uri.query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
    let mut values = pairs.filter(|(key, value)| *key == "target" && !value.is_empty()).map(|(_, value)| value);
    let name = values.next().map(str::parse).transpose();
    name.map_err(|e: microcluster_client::NameError| Error::bad_request(format!("the target of the request: {e}")))
}

/// Where a member is.
async fn address(node: &Arc<Node>, name: &Name) -> Result<Address, Error> {
    let find = || node.trust.current().iter().find(|member| member.name == *name).map(|member| member.address);
    if let Some(address) = find() {
        return Ok(address);
    }
    // It may be new.
    node.refresh_trust().await?;
    let unknown = || format!("there is no member named {name}; `microctl cluster list` shows those there are");
    find().ok_or_else(|| Error::not_found(unknown()))
}

/// Passes a request on over a stream of its own. When the other side agrees to the upgrade the two connections are
/// joined, in a task of `tasks`, until both are closed or `removal` is done.
async fn upgrade<S>(
    stream: S,
    address: Address,
    mut request: Request,
    tasks: &Tasks,
    removal: BoxFuture<'static, ()>,
) -> Result<Response, Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let ours = request.extensions_mut().remove::<OnUpgrade>();
    let ours = ours.ok_or_else(|| Error::bad_request("this connection cannot be upgraded"))?;
    let lost = |e: hyper::Error| Error::timeout(format!("the connection to {address} ended early")).caused_by(e);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(lost)?;
    tasks.spawn("proxied connection", async move {
        if let Err(e) = connection.with_upgrades().await {
            tracing::debug!(error = %e, "a proxied connection ended early");
        }
    });
    // Every header goes on, those of the upgrade too; only who asks and whom is another one.
    let host = HeaderValue::from_str(&address.to_string()).map_err(|e| Error::internal("no host").caused_by(e))?;
    request.headers_mut().insert(HOST, host);
    forward::mark(&mut request);
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    *request.uri_mut() = path.parse().map_err(|e: http::uri::InvalidUri| Error::bad_request(e.to_string()))?;
    let response = sender.send_request(request).await.map_err(lost)?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(response.map(Body::new));
    }
    let mut answer = StatusCode::SWITCHING_PROTOCOLS.into_response();
    for (name, value) in response.headers() {
        answer.headers_mut().append(name, value.clone());
    }
    answer.headers_mut().entry(CONNECTION).or_insert(HeaderValue::from_static("Upgrade"));
    let theirs = hyper::upgrade::on(response);
    let own = tasks.clone();
    tasks.spawn("proxied upgrade", async move {
        let (ours, theirs) = match tokio::try_join!(ours, theirs) {
            Ok(both) => both,
            Err(e) => return tracing::debug!(error = %e, "a proxied upgrade was not finished"),
        };
        let (mut ours, mut theirs) = (TokioIo::new(ours), TokioIo::new(theirs));
        tokio::select! {
            copied = tokio::io::copy_bidirectional(&mut ours, &mut theirs) => if let Err(e) = copied {
                tracing::debug!(error = %e, "a proxied upgrade ended early");
            },
            () = own.stopping() => {}
            () = removal => tracing::debug!("a proxied upgrade of a former member was closed"),
        }
    });
    Ok(answer)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::Empty;
    use hyper::body::{Bytes, Incoming};
    use hyper::service::service_fn;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    #[test]
    fn the_target_is_the_one_that_is_named() {
        let named = |query: &str| target(&format!("/core/1.0/x{query}").parse().unwrap());
        assert_eq!(named("").unwrap(), None);
        assert_eq!(named("?target=").unwrap(), None);
        assert_eq!(named("?a=b&target=c2").unwrap(), Some("c2".parse().unwrap()));
        assert_eq!(named("?target=a_b").unwrap_err().status(), 400);
        assert_eq!(named("?target=../x").unwrap_err().status(), 400);
    }

    proptest::proptest! {
        #[test]
        fn any_query_names_a_member_or_nobody_or_is_refused(query in "[a-zA-Z0-9=&%.;_-]{0,60}(target=[!-~]{0,20})?") {
            if let Ok(uri) = format!("/core/1.0/x?{query}").parse()
                && let Ok(Some(name)) = target(&uri)
            {
                assert!(query.contains(&format!("target={name}")), "{query}");
            }
        }
    }

    type Answered = Result<hyper::Response<Body>, Infallible>;

    /// Serves HTTP/1.1 on one end of a pipe and returns the other.
    fn server<F, R>(tasks: &Tasks, answer: F) -> DuplexStream
    where
        F: Fn(hyper::Request<Incoming>) -> R + Send + 'static,
        R: Future<Output = Answered> + Send + 'static,
    {
        let (near, far) = duplex(1 << 10);
        let serving = hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(far), service_fn(answer))
            .with_upgrades();
        tasks.spawn("server", async move { drop(serving.await) });
        near
    }

    /// A client, the proxy and a server that upgrades and then sends everything back.
    async fn through_the_proxy(server_status: StatusCode) -> (hyper::Response<Incoming>, Tasks) {
        let tasks = Tasks::new("test");
        let own = tasks.clone();
        let near = server(&tasks, move |request| {
            let own = own.clone();
            let (end, tasks) = (server_end(&own, server_status), own);
            async move {
                let address = "127.0.0.1:9".parse().unwrap();
                let answer =
                    upgrade(end, address, request.map(Body::new), &tasks, Box::pin(std::future::pending())).await;
                Ok(answer.unwrap_or_else(IntoResponse::into_response))
            }
        });
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(near)).await.unwrap();
        tasks.spawn("client", async move { drop(connection.with_upgrades().await) });
        let request = hyper::Request::get("/1.0/echo?target=c2")
            .header(CONNECTION, "Upgrade")
            .header(UPGRADE, "echo")
            .header("x-own", "kept");
        let response = sender.send_request(request.body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
        (response, tasks)
    }

    fn server_end(tasks: &Tasks, status: StatusCode) -> DuplexStream {
        let own = tasks.clone();
        server(tasks, move |mut request| {
            assert_eq!(request.uri(), "/1.0/echo?target=c2");
            assert_eq!(request.headers()["x-own"], "kept");
            assert_eq!(request.headers()[UPGRADE], "echo");
            let upgraded = hyper::upgrade::on(&mut request);
            if status == StatusCode::SWITCHING_PROTOCOLS {
                own.spawn("echo", async move {
                    let (mut reader, mut writer) = tokio::io::split(TokioIo::new(upgraded.await.unwrap()));
                    tokio::io::copy(&mut reader, &mut writer).await.unwrap();
                    writer.shutdown().await.unwrap();
                });
            }
            let mut response = hyper::Response::new(Body::from(if status == 101 { "" } else { "no" }));
            *response.status_mut() = status;
            response.headers_mut().insert(UPGRADE, HeaderValue::from_static("echo"));
            async move { Ok(response) }
        })
    }

    #[tokio::test]
    async fn an_upgrade_goes_through_in_both_directions() {
        let (response, tasks) = through_the_proxy(StatusCode::SWITCHING_PROTOCOLS).await;
        assert_eq!(response.status(), 101);
        assert_eq!(response.headers()[UPGRADE], "echo");
        let mut stream = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
        for text in ["one", "two"] {
            stream.write_all(text.as_bytes()).await.unwrap();
            let mut back = [0; 3];
            stream.read_exact(&mut back).await.unwrap();
            assert_eq!(back, text.as_bytes());
        }
        stream.shutdown().await.unwrap();
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0, "the end goes through too");
        drop(stream);
        tasks.shutdown(Duration::from_secs(10)).await;
    }

    #[tokio::test]
    async fn a_refusal_comes_back_as_it_is() {
        let (response, _tasks) = through_the_proxy(StatusCode::FORBIDDEN).await;
        assert_eq!(response.status(), 403);
        let body = http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
        assert_eq!(body, "no");
    }
}
