// SPDX-License-Identifier: GPL-2.0-only
/* The hardworker: take a copy of what the sensors send, pass the packets on to their destination.
 *
 * A destination is a logger or, where there is none, this host's own stack. A byte goes there only if it is in the ring,
 * or was before: what the destination has acknowledged, the hardworker holds. Whatever cannot be held is dropped, and
 * the sensor's own TCP sends it again. Traffic that is not marked passes untouched.
 *
 * Here it is decided what a packet is. What happens then: opening.h (with reclaim.h), store.h (with connection.h and
 * copy.h), lifecycle.h, beginning.h; what is believed: plausible.h, checksum.h, sensors.h; what all share: tables.h,
 * quota.h.
 */
#include "beginning.h"
#include "bpf.h"
#include "connection.h"
#include "const.h"
#include "lifecycle.h"
#include "marked.h"
#include "opening.h"
#include "outcome.h"
#include "packet.h"
#include "plausible.h"
#include "reclaim.h"
#include "sensors.h"
#include "store.h"
#include "tables.h"

/* Data, the end of the stream, or both. Messages of const.toml's size fit their record exactly. */
static __always_inline int take(struct xdp_md *ctx, struct packet *p, struct connection *c)
{
	bool fin = p->flags & TCP_FIN;
	__u32 sensor = c->sensor;
	__s64 end;

	if (!(p->flags & TCP_ACK)) { /* RFC 9293, section 3.10.7.4, fifth */
		COUNT(sensor, no_ack);
		return XDP_DROP;
	}
	p->time = bpf_ktime_get_ns();
	if (c->other_first && !c->established && !is_answered(p, c)) {
		COUNT(sensor, stale);
		return XDP_DROP;
	}
	if (belongs_to_other(p, c) && p->time - c->seen > SILENCE) {
		/* The sensor has forgotten this connection and opened another from the same port. A reset
		 * makes it open one that is known from its SYN.
		 */
		if (!break_off(p, c))
			return XDP_DROP;
		COUNT(sensor, replaced);
		return refuse(p);
	}
	if (!c->established) {
		note_beginning(p, c);
	} else if (acknowledges_nonsense(p, c)) {
		COUNT(sensor, bad_ack);
		return XDP_DROP;
	}
	end = stream_offset(p->sequence, c->first, c->next) + p->length;
	if (!fin && end <= (__s64)c->next) {
		/* Decided without the lock: `next` never moves back. */
		if ((__s64)c->next - end > KNOWN_WINDOW || belongs_to_other(p, c)) {
			COUNT(sensor, stale);
			return XDP_DROP;
		}
		COUNT(sensor, duplicate);
		return forward(p->headers, c->destination);
	}
	if (is_stale(p, c)) {
		COUNT(sensor, stale);
		return XDP_DROP;
	}
	if (DATA_SIZE >= EXACT_LEAST && DATA_SIZE <= MAX_PAYLOAD && p->length == DATA_SIZE)
		return store(ctx, p, c, BLOCKS(DATA_SIZE), DATA_SIZE);
	if (p->length <= 64)
		return store(ctx, p, c, 64, 0);
	if (p->length <= 512)
		return store(ctx, p, c, 512, 0);
	return store(ctx, p, c, BLOCKS(MAX_PAYLOAD), 0);
}

/* RFC 5961, section 3: only the exact next sequence number resets; the logger challenges others. So does the
 * number that a sensor was asked with: it has forgotten the connection.
 */
static __always_inline int reset(struct xdp_md *ctx, struct packet *p, struct connection *c)
{
	__u32 sensor = c->sensor, destination = c->destination;

	if ((p->sequence != c->first + (__u32)c->next && !(c->questions && p->sequence == c->first)) || p->length ||
	    !verified(ctx, p, 0)) {
		COUNT(sensor, reset_ignored);
		return forward(p->headers, destination);
	}
	p->time = bpf_ktime_get_ns();
	if (!break_off(p, c))
		return XDP_DROP;
	COUNT(sensor, reset);
	return forward(p->headers, destination);
}

/* An acknowledgement alone: it shows what the logger has sent, and that the sensor lives. */
static __always_inline int acknowledge(struct xdp_md *ctx, struct packet *p, struct connection *c)
{
	if (p->flags & TCP_ACK && !acknowledges_nonsense(p, c) && verified(ctx, p, 0)) {
		if (c->other_first && !c->established)
			is_answered(p, c);
		if (p->sequence == c->first + (__u32)c->next) {
			if (!c->established)
				note_beginning(p, c);
			c->acknowledged = p->acknowledgement;
			c->established = 1;
			c->seen = bpf_ktime_get_ns();
		}
		c->questions = 0;
	}
	COUNT(c->sensor, pure_ack);
	return forward(p->headers, c->destination);
}

/* Somebody else with a sensor's IP address. The stack must not see it: its reset would bear the
 * right numbers, if these are right, and end the sensor's connection.
 */
static __always_inline int refuse_forged(void)
{
	COUNT(NO_SENSOR, forged);
	return XDP_DROP;
}

/* The connection goes on where a sensor has another network card, and const.toml names it. */
static __always_inline bool is_from_sensor(const struct packet *p, struct connection *c)
{
	const __u8 *mac = p->headers->eth.h_source;
	const struct sensor *sensor;

	if (same_mac(mac, c->mac))
		return true;
	sensor = find_sensor(p->key.ip);
	if (!sensor || !same_mac(mac, sensor->mac))
		return false;
	__builtin_memcpy(c->mac, mac, ETH_ALEN);
	return true;
}

static __always_inline int on_open_connection(struct xdp_md *ctx, struct packet *p, struct connection *c)
{
	if (!is_from_sensor(p, c))
		return refuse_forged();
	if (p->flags & TCP_SYN) {
		if (!verified(ctx, p, 0)) {
			COUNT(c->sensor, bad_checksum);
			return XDP_DROP;
		}
		if (p->sequence + 1 != c->first)
			return open_again(p, c);
		COUNT(c->sensor, duplicate);
		return forward(p->headers, c->destination);
	}
	if (p->flags & TCP_RST)
		return reset(ctx, p, c);
	if (p->length || p->flags & TCP_FIN)
		return take(ctx, p, c);
	return acknowledge(ctx, p, c);
}

/* Does this host's own stack have a connection of which nothing is known here? */
static __always_inline bool is_taken_by_stack(struct xdp_md *ctx, const struct packet *p)
{
	struct bpf_sock_tuple tuple = {
		.ipv4 = {.saddr = p->key.ip,
			 .sport = p->key.port,
			 .daddr = bswap32(HARDWORKER_IP),
			 .dport = bswap16(MARK_PORT)},
	};
	struct bpf_sock *sock;
	bool taken;

	sock = bpf_skc_lookup_tcp(ctx, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
	if (!sock)
		return false;
	taken = sock->state != BPF_TCP_LISTEN;
	bpf_sk_release(sock);
	return taken;
}

/* Its stream is complete; what carries nothing new goes on to where it went, whose TCP answers. */
static __always_inline int on_finished_connection(const struct packet *p, const struct finished *done, __u32 sensor)
{
	__s64 end = stream_offset(p->sequence, done->first, done->length) + p->length;

	if (p->length && end > (__s64)done->length) {
		COUNT(sensor, beyond_fin);
		return XDP_DROP;
	}
	if (p->length && (__s64)done->length - end > KNOWN_WINDOW) {
		COUNT(sensor, stale);
		return XDP_DROP;
	}
	COUNT(sensor, duplicate);
	return forward(p->headers, done->destination);
}

static __always_inline int on_unknown_connection(struct xdp_md *ctx, struct packet *p)
{
	const struct sensor *sensor = find_sensor(p->key.ip);
	struct finished *done;
	__u32 number;

	if (!sensor) {
		COUNT(NO_SENSOR, stranger);
		return XDP_PASS;
	}
	if (!same_mac(p->headers->eth.h_source, sensor->mac))
		return refuse_forged();
	number = sensor->number;
	if (p->flags & TCP_SYN)
		return open(ctx, p, sensor);
	done = bpf_map_lookup_elem(&finished, &p->key);
	if (done)
		return on_finished_connection(p, done, number);
	if (p->length && !(p->flags & TCP_RST)) {
		COUNT(number, no_connection);
		return refuse(p);
	}
	COUNT(number, pure_ack);
	return forward(p->headers, is_taken_by_stack(ctx, p) ? HERE : destination_now());
}

/* Sensors send no options; whoever does must not reach the stack through the marked port. */
static __always_inline int refuse_options(const struct headers *h, const void *end)
{
	const struct iphdr *ip = ip_header(h);
	const struct tcphdr *tcp = (const void *)ip + ip->ihl * 4;

	if (ip->version != 4 || ip->ihl < 5 || ip->frag_off & IP_FRAGMENT_OFFSET || (void *)(tcp + 1) > end ||
	    tcp->dest != bswap16(MARK_PORT))
		return XDP_PASS;
	COUNT(NO_SENSOR, ip_options);
	return XDP_DROP;
}

SEC("xdp") int midstream_hardworker(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct headers *h = data;
	const struct tcphdr *tcp = tcp_header(h);
	const struct iphdr *ip = ip_header(h);
	struct connection *c;
	struct packet p;
	__u32 total, header;

	if ((void *)(h + 1) > end || ETHER_TYPE(&h->eth) != bswap16(ETH_P_IP) || ip->daddr != bswap32(HARDWORKER_IP) ||
	    ip->protocol != IPPROTO_TCP || !is_marked(ip->tos) || !same_mac(h->eth.h_dest, HARDWORKER_MAC))
		return XDP_PASS;
	if (IP_VERSION_LENGTH(ip) != IP_VERSION_4_NO_OPTIONS)
		return refuse_options(h, end);
	/* A later fragment has no TCP header, so nothing says that it is ours. */
	if (ip->frag_off & IP_FRAGMENT_OFFSET || tcp->dest != bswap16(MARK_PORT))
		return XDP_PASS;
	if (ip->frag_off & IP_MORE_FRAGMENTS) {
		COUNT(NO_SENSOR, fragment);
		return XDP_DROP;
	}

	total = bswap16(ip->tot_len);
	header = sizeof(struct iphdr) + tcp->doff * 4;
	if (tcp->doff < 5 || total < header || total > end - data - sizeof(struct ethhdr)) {
		COUNT(NO_SENSOR, bad_length);
		return XDP_DROP;
	}
	p.headers = h;
	p.flags = TCP_FLAGS(tcp);
	p.length = total - header;
	p.payload_offset = sizeof(struct ethhdr) + header;
	p.sequence = bswap32(tcp->seq);
	p.acknowledgement = bswap32(tcp->ack_seq);
	p.timestamp = 0;
	if (tcp->doff >= 8 && (void *)(h + 1) + 8 <= end && *(__be32 *)(h + 1) == TIMESTAMP_OPTION)
		p.timestamp = bswap32(((__be32 *)(h + 1))[1]);
	p.key.ip = ip->saddr;
	p.key.port = tcp->source;
	p.key.zero = 0;
	if (p.length > MAX_PAYLOAD) {
		COUNT(NO_SENSOR, oversized);
		return XDP_DROP;
	}
	if (p.flags & TCP_SYN && (p.length || p.flags & (TCP_FIN | TCP_RST | TCP_ACK))) {
		if (p.length)
			COUNT(NO_SENSOR, syn_data);
		else
			COUNT(NO_SENSOR, bad_flags);
		return XDP_DROP;
	}

	c = bpf_map_lookup_elem(&connections, &p.key);
	return c ? on_open_connection(ctx, &p, c) : on_unknown_connection(ctx, &p);
}

/* Never attached: the daemon runs it for a connection whose destination is gone, with the key behind an Ethernet header.
 * Ends it here, and for the reader.
 */
SEC("xdp") int midstream_break_off(struct xdp_md *ctx)
{
	struct packet p = {};
	struct connection *c;

	if (bpf_xdp_load_bytes(ctx, sizeof(struct ethhdr), &p.key, sizeof(p.key)))
		return XDP_ABORTED;
	c = bpf_map_lookup_elem(&connections, &p.key);
	p.time = bpf_ktime_get_ns();
	return c && !break_off(&p, c) ? XDP_DROP : XDP_PASS;
}

/* Some helpers are for programs under the GPL only, and so is this one. */
char _license[] SEC("license") = "GPL";
