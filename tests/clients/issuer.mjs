// An OpenID provider that issues access tokens (JWT, ES256) to one client. Usage: issuer.mjs PORT KEY_ID
import { createServer } from 'node:http';
import { exportJWK, generateKeyPair } from 'jose';
import Provider from 'oidc-provider';

const [port, kid] = process.argv.slice(2);
const { privateKey } = await generateKeyPair('ES256', { extractable: true });
const key = { ...(await exportJWK(privateKey)), kid, alg: 'ES256', use: 'sig' };
const resource = 'https://leasehold.test';
const provider = new Provider(`http://127.0.0.1:${port}`, {
  clients: [{
    client_id: 'ci-bot', client_secret: 'client-secret-of-the-test', grant_types: ['client_credentials'],
    redirect_uris: [], response_types: [], id_token_signed_response_alg: 'ES256',
  }],
  jwks: { keys: [key] },
  features: {
    clientCredentials: { enabled: true },
    resourceIndicators: {
      enabled: true,
      defaultResource: () => resource,
      useGrantedResource: () => true,
      getResourceServerInfo: () => ({
        scope: 'call', audience: resource, accessTokenTTL: 300, accessTokenFormat: 'jwt', jwt: { sign: { alg: 'ES256' } },
      }),
    },
  },
});
createServer(provider.callback()).listen(Number(port), '127.0.0.1', () => console.log('ready'));
