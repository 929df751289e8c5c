"""Callers of requests and httpx, over HTTP/1.1 and HTTP/2.

Usage: callers.py PLAIN_URL TLS_URL CA TOKEN PATH; prints a line for each.
"""

import sys

import httpx
import requests

plain, tls, ca, token, path = sys.argv[1:]
headers = {"Authorization": f"Bearer {token}"}

with requests.Session() as session:
    for _ in range(3):
        answer = session.get(plain + path, headers=headers, timeout=20)
    print("requests", answer.status_code, answer.json()["rabbitmq_version"][:1])
    refused = session.get(plain + "/api/users", headers=headers, timeout=20)
    print("requests", refused.status_code, refused.json()["reason"])

for http2 in (False, True):
    import ssl

    with httpx.Client(http2=http2, http1=not http2, verify=ssl.create_default_context(cafile=ca)) as client:
        answers = [client.get(tls + path, headers=headers, timeout=20) for _ in range(3)]
        print("httpx", answers[-1].http_version, answers[-1].status_code)
        print("httpx", client.delete(tls + "/api/queues/%2F/none", headers=headers).status_code)
        print("httpx", client.get(tls + path).status_code)
