#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""clients.py: Authlib as a client of the service at LOGIN_ISSUER: discovery, client credentials, the code flow with PKCE, introspection
and revocation. It prints "open URL" where a user has to agree."""

import http.server
import os

from authlib.common.security import generate_token
from authlib.integrations.base_client import OAuthError
from authlib.integrations.requests_client import OAuth2Session

ISSUER = os.environ["LOGIN_ISSUER"]
# requests has a list of authorities of its own, unless the environment names another.
os.environ["REQUESTS_CA_BUNDLE"] = os.environ["NODE_EXTRA_CA_CERTS"]


copy = OAuth2Session("copy", client_secret=os.environ["LOGIN_SECRET"])
metadata = copy.get(ISSUER + "/.well-known/openid-configuration", withhold_token=True).json()
assert metadata["issuer"] == ISSUER, metadata
assert "S256" in metadata["code_challenge_methods_supported"], metadata
for grant in [
    "authorization_code",
    "refresh_token",
    "client_credentials",
    "urn:ietf:params:oauth:grant-type:device_code",
]:
    assert grant in metadata["grant_types_supported"], (grant, metadata)


def introspect(token):
    return copy.introspect_token(metadata["introspection_endpoint"], token=token, token_type_hint="access_token").json()


def revoke(token):
    response = copy.revoke_token(metadata["revocation_endpoint"], token=token, token_type_hint="access_token")
    assert response.status_code == 200, response.text


def client_credentials():
    token = copy.fetch_token(metadata["token_endpoint"], grant_type="client_credentials")["access_token"]
    claims = introspect(token)
    assert claims["active"] and claims["sub"] == "copy", claims
    revoke(token)
    assert introspect(token) == {"active": False}


class Callback(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.answer = self.path
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"You may close this page.")

    def log_message(self, *_):
        pass


def code_flow():
    server = http.server.HTTPServer(("127.0.0.1", 0), Callback)
    server.timeout = 60
    back = f"http://127.0.0.1:{server.server_port}/callback"
    cli = OAuth2Session("cli", redirect_uri=back, code_challenge_method="S256", token_endpoint_auth_method="none")
    verifier = generate_token(48)
    url, state = cli.create_authorization_url(
        metadata["authorization_endpoint"], code_verifier=verifier, audience="copy-offload"
    )
    print("open", url, flush=True)
    server.handle_request()
    answer = f"http://127.0.0.1:{server.server_port}{server.answer}"
    token = cli.fetch_token(
        metadata["token_endpoint"], authorization_response=answer, state=state, code_verifier=verifier
    )
    claims = introspect(token["access_token"])
    assert claims["active"] and claims["sub"] == os.environ["LOGIN_ALICE"], claims
    fresh = cli.refresh_token(metadata["token_endpoint"], refresh_token=token["refresh_token"])
    assert fresh["refresh_token"] != token["refresh_token"]
    try:
        cli.refresh_token(metadata["token_endpoint"], refresh_token=token["refresh_token"])
        raise AssertionError("a refresh token is good twice")
    except OAuthError as error:
        assert error.error == "invalid_grant", error
    revoke(token["access_token"])
    assert introspect(token["access_token"]) == {"active": False}


client_credentials()
code_flow()
