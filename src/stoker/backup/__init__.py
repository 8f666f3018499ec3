"""Snapshots of models, registry and configuration in a repository elsewhere: made, verified, restored, pruned.

A repository is an object store: `objects/<aa>/<sha256>` is content, kept once however many snapshots need it;
`snapshots/<id>.json` is a manifest, written last. A snapshot exists when its manifest does.
"""
