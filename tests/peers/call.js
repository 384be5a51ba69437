// What @grpc/grpc-js sees of a server. One JSON object in by the first argument, one out by stdout:
// {address, path, request: base64, ca, key, cert, count, timeout_ms, action} → {results: [...]}.
'use strict';
const grpc = require('@grpc/grpc-js');
const {createHash} = require('node:crypto');
const {readFileSync} = require('node:fs');

const asked = JSON.parse(readFileSync(process.argv[2]));
const read = (path) => (path ? readFileSync(path) : null);
const credentials = asked.ca
  ? grpc.credentials.createSsl(read(asked.ca), read(asked.key), read(asked.cert))
  : grpc.credentials.createInsecure();
const client = new grpc.Client(asked.address, credentials, {
  'grpc.max_receive_message_length': -1,
  'grpc.max_send_message_length': -1,
  'grpc.default_compression_algorithm': asked.compression || 0,
});
const request = asked.request_file ? readFileSync(asked.request_file) : Buffer.alloc(0);
const same = (bytes) => bytes;

function metadataOf(pairs) {
  const metadata = new grpc.Metadata();
  for (const [name, value] of Object.entries(pairs || {})) {
    metadata.add(name, name.endsWith('-bin') ? Buffer.from(value, 'base64') : value);
  }
  return metadata;
}

function tell(error, reply) {
  if (error) {
    return {code: error.code, details: error.details, metadata: error.metadata.getMap()};
  }
  return {code: 0, size: reply.length, sha256: createHash('sha256').update(reply).digest('hex')};
}

function callOnce(action) {
  return new Promise((resolve) => {
    const options = asked.timeout_ms ? {deadline: Date.now() + asked.timeout_ms} : {};
    const call = client.makeUnaryRequest(
      asked.path, same, same, request, metadataOf(asked.metadata), options,
      (error, reply) => resolve(tell(error, reply)));
    if (action === 'cancel') call.cancel();
  });
}

function watch() {
  return new Promise((resolve) => {
    const stream = client.makeServerStreamRequest(
      asked.path, same, same, request, new grpc.Metadata(), {});
    stream.on('data', (reply) => {
      resolve({code: 0, body: reply.toString('hex')});
      stream.cancel();
    });
    stream.on('error', (error) => resolve(tell(error)));
  });
}

async function main() {
  let results;
  if (asked.action === 'watch') results = [await watch()];
  else results = await Promise.all(Array.from({length: asked.count || 1}, () => callOnce(asked.action)));
  console.log(JSON.stringify({results}));
  client.close();
}

main();
