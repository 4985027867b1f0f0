// Prints what is wrong with the manifests on standard input (a JSON list), one line each, by the
// validators that are made of the CRDs. Usage: node crd_check.mjs FOLDER_OF_TOOLS
import { readFileSync, readdirSync } from "node:fs";

const models = `${process.argv[2]}/node_modules/@kubernetes-models`;
const packages = {
  "gateway.networking.k8s.io": ["gateway-api", "IoK8sSigsGatewayApiApis"],
  "karpenter.sh": ["karpenter", "IoK8sSigsKarpenterPkgApis"],
  "karpenter.k8s.aws": ["karpenter", "ComGithubAwsKarpenterProviderAwsPkgApis"],
  "keda.sh": ["keda", "ComGithubKedacoreKedaV2ApisKeda"],
  "monitoring.coreos.com": [
    "prometheus-operator",
    "ComGithubPrometheusOperatorPrometheusOperatorPkgApisMonitoring",
  ],
};
for (const manifest of JSON.parse(readFileSync(0, "utf8"))) {
  const [group, version] = manifest.apiVersion.split("/");
  const [name, prefix] = packages[group];
  const file = `${prefix}${version[0].toUpperCase()}${version.slice(1)}${manifest.kind}.js`;
  if (!readdirSync(`${models}/${name}/_schemas`).includes(file)) {
    console.log(`${manifest.kind}: ${name} has no ${file}`);
    continue;
  }
  const { validate } = await import(`${models}/${name}/_schemas/${file}`);
  if (!validate(manifest)) {
    for (const error of validate.errors) {
      console.log(`${manifest.kind}${error.instancePath}: ${error.keyword} ${JSON.stringify(error.params)}`);
    }
  }
}
