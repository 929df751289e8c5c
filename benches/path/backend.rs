//! A backend that costs next to nothing: it answers 125 bytes to whatever ends with an empty line.

use std::net::SocketAddr;
use std::path::Path;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};

/// Starts it on a thread of its own, on TCP and on a Unix socket.
pub fn start(socket: &Path) -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let unix = std::os::unix::net::UnixListener::bind(socket).unwrap();
    unix.set_nonblocking(true).unwrap();
    std::thread::spawn(move || {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
            let (tcp, unix) = (TcpListener::from_std(listener).unwrap(), UnixListener::from_std(unix).unwrap());
            loop {
                tokio::select! {
                    Ok((stream, _)) = tcp.accept() => {
                        stream.set_nodelay(true).unwrap();
                        tokio::spawn(serve(stream));
                    }
                    Ok((stream, _)) = unix.accept() => drop(tokio::spawn(serve(stream))),
                }
            }
        });
    });
    address
}

async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    let answer = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ncontent-length: 125\r\n\r\n{}",
        "x".repeat(125)
    );
    let mut piece = vec![0; 4096];
    let mut kept = 0;
    loop {
        match stream.read(&mut piece[kept..]).await {
            Ok(read) if read > 0 => kept += read,
            _ => return,
        }
        if piece[..kept].ends_with(b"\r\n\r\n") {
            kept = 0;
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    }
}
