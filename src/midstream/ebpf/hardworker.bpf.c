// SPDX-License-Identifier: GPL-2.0-only
/* The hardworker: take a copy of what the sensors send, pass the packets on to the logger.
 *
 * A byte leaves for the logger only if it is in the ring, or was before: what the logger has
 * acknowledged, the hardworker holds. Whatever cannot be held is dropped, and the sensor's own TCP
 * sends it again. Traffic that is not marked passes untouched.
 */
#include "bpf.h"
#include "connection.h"
#include "const.h"
#include "packet.h"
#include "record.h"
#include "sensors.h"
#include "tables.h"

/* One marked packet, its lengths checked against the frame. */
struct packet {
	struct headers *headers;
	struct connection_key key;
	__u32 sequence;	      /* host byte order */
	__u32 payload_offset; /* in the frame */
	__u32 length;	      /* of the payload */
	__u8 flags;
};

/* The counters' entry for what cannot be told to come from a known sensor. */
#define NO_SENSOR SENSOR_COUNT

#define COUNT(sensor, outcome)                                                        \
	({                                                                            \
		__u32 position = (sensor);                                            \
		struct counters *counted = bpf_map_lookup_elem(&counters, &position); \
		if (counted)                                                          \
			counted->outcome++;                                           \
	})

static __always_inline int forward(struct headers *h)
{
	static const __u8 hardworker_mac[ETH_ALEN] = HARDWORKER_MAC, logger_mac[ETH_ALEN] = LOGGER_MAC;

	__builtin_memcpy(h->eth.h_source, hardworker_mac, ETH_ALEN);
	__builtin_memcpy(h->eth.h_dest, logger_mac, ETH_ALEN);
	h->ip.daddr = bswap32(LOGGER_IP);
	h->ip.check = replaced_checksum(h->ip.check, bswap32(HARDWORKER_IP), bswap32(LOGGER_IP));
	/* The address is in TCP's pseudo-header too (RFC 9293, section 3.1). */
	h->tcp.check = replaced_checksum(h->tcp.check, bswap32(HARDWORKER_IP), bswap32(LOGGER_IP));
	return XDP_TX;
}

static __always_inline void describe(struct record *record, const struct packet *p, __u32 connection, __u16 sensor)
{
	record->offset = 0;
	record->time = bpf_ktime_get_ns();
	record->connection = connection;
	record->length = 0;
	record->sensor = sensor;
	record->port = bswap16(p->key.port);
	record->flags = 0;
	record->unused = 0;
}

/* The stream is complete: remember only what recognises its retransmissions. */
static __always_inline void finish(const struct packet *p, const struct connection *c)
{
	struct finished done = {.length = c->next, .first = c->first, .sensor = c->sensor};

	__builtin_memcpy(done.mac, c->mac, ETH_ALEN);
	bpf_map_update_elem(&finished, &p->key, &done, BPF_ANY);
	bpf_map_delete_elem(&connections, &p->key);
}

static __always_inline bool copy(struct xdp_md *ctx, __u32 from, struct record *record, __u32 length,
				 const __u32 capacity)
{
	__u32 last = length - 1;

	/* The verifier of 6.1 forgets that a length is not 0; of a masked value plus one it knows it. */
	barrier_var(last);
	last &= 0xfff;
	return last < capacity && !bpf_xdp_load_bytes(ctx, from, record->payload, last + 1);
}

/* Store what is new of a segment in a record with room for `capacity` bytes, then forward it.
 * The verifier wants the room to be a constant.
 */
static __always_inline int store(struct xdp_md *ctx, const struct packet *p, struct connection *c, const __u32 capacity)
{
	bool fin = p->flags & TCP_FIN;
	__u32 sensor = c->sensor, length;
	struct record *record;
	__s64 start, first_new, end;
	enum claim verdict;

	/* Room first: bytes once claimed must be stored. */
	record = bpf_ringbuf_reserve(&ring, sizeof(*record) + capacity, 0);
	if (!record) {
		COUNT(sensor, ring_full);
		return XDP_DROP;
	}
	describe(record, p, c->number, sensor);

	bpf_spin_lock(&c->lock);
	start = stream_offset(p->sequence, c->first, c->next);
	end = start + p->length;
	first_new = start;
	verdict = claim(c, &first_new, end, fin);
	bpf_spin_unlock(&c->lock);

	length = end - first_new;
	if (verdict > CLAIM_EARLY ||
	    (length && !copy(ctx, p->payload_offset + (__u32)(first_new - start), record, length, capacity)))
		goto discard;
	record->offset = first_new;
	record->length = length;
	record->flags = fin ? RECORD_FIN : 0;
	bpf_ringbuf_submit(record, settings.wakeup);

	if (verdict == CLAIM_STORED)
		COUNT(sensor, stored);
	else
		COUNT(sensor, early);
	if (c->next == c->fin)
		finish(p, c);
	return forward(p->headers);

discard:
	/* With the same flags as a submission: a reader that waits for this record must look past it. */
	bpf_ringbuf_discard(record, settings.wakeup);
	if (verdict == CLAIM_KNOWN) {
		COUNT(sensor, known);
		return forward(p->headers);
	}
	if (verdict == CLAIM_TOO_EARLY)
		COUNT(sensor, too_early);
	else
		COUNT(sensor, beyond_fin);
	return XDP_DROP;
}

/* Data, the end of the stream, or both. Messages of const.toml's size fit their record exactly. */
static __always_inline int take(struct xdp_md *ctx, const struct packet *p, struct connection *c)
{
	if (!(p->flags & TCP_ACK)) { /* RFC 9293, section 3.10.7.4, fifth */
		COUNT(c->sensor, no_ack);
		return XDP_DROP;
	}
#if DATA_SIZE <= MTU - 40
	if (p->length == DATA_SIZE)
		return store(ctx, p, c, DATA_SIZE);
#endif
	if (p->length <= 64)
		return store(ctx, p, c, 64);
	if (p->length <= 512)
		return store(ctx, p, c, 512);
	return store(ctx, p, c, MAX_PAYLOAD);
}

/* RFC 5961, section 3: only the exact next sequence number resets; the logger challenges others. */
static __always_inline int reset(const struct packet *p, struct connection *c)
{
	__u32 sensor = c->sensor;
	struct record *record;

	if (p->sequence != c->first + (__u32)c->next) {
		COUNT(sensor, reset_ignored);
		return forward(p->headers);
	}
	record = bpf_ringbuf_reserve(&ring, sizeof(*record), 0);
	if (!record) {
		COUNT(sensor, ring_full);
		return XDP_DROP;
	}
	describe(record, p, c->number, sensor);
	record->offset = c->next;
	record->flags = RECORD_RESET;
	if (bpf_map_delete_elem(&connections, &p->key)) { /* the same packet twice, on two CPUs */
		bpf_ringbuf_discard(record, settings.wakeup);
		COUNT(sensor, known);
	} else {
		bpf_ringbuf_submit(record, settings.wakeup);
		COUNT(sensor, reset);
	}
	return forward(p->headers);
}

static __always_inline int on_open_connection(struct xdp_md *ctx, const struct packet *p, struct connection *c)
{
	if (!same_mac(p->headers->eth.h_source, c->mac)) {
		COUNT(NO_SENSOR, stranger);
		return XDP_PASS;
	}
	if (p->flags & TCP_SYN) {
		if (p->sequence + 1 == c->first)
			COUNT(c->sensor, known);
		else
			COUNT(c->sensor, syn_ignored);
		return forward(p->headers);
	}
	if (p->flags & TCP_RST)
		return reset(p, c);
	if (p->length || p->flags & TCP_FIN)
		return take(ctx, p, c);
	COUNT(c->sensor, bare);
	return forward(p->headers);
}

/* A SYN opens the connection here before the logger sees it. */
static __always_inline int open(const struct packet *p, const struct sensor *sensor)
{
	struct connection c = {.fin = NO_FIN, .first = p->sequence + 1};
	__u32 zero = 0, number = sensor->number, *last;
	struct record *record;
	long failed;

	last = bpf_map_lookup_elem(&last_number, &zero);
	if (!last)
		return XDP_DROP;
	record = bpf_ringbuf_reserve(&ring, sizeof(*record), 0);
	if (!record) {
		COUNT(number, ring_full);
		return XDP_DROP;
	}
	c.number = __sync_fetch_and_add(last, 1) + 1;
	c.sensor = number;
	__builtin_memcpy(c.mac, p->headers->eth.h_source, ETH_ALEN);
	describe(record, p, c.number, number);
	record->flags = RECORD_OPEN;

	failed = bpf_map_update_elem(&connections, &p->key, &c, BPF_NOEXIST);
	if (failed) {
		bpf_ringbuf_discard(record, settings.wakeup);
		COUNT(number, table_full);
		return XDP_DROP;
	}
	bpf_map_delete_elem(&finished, &p->key);
	bpf_ringbuf_submit(record, settings.wakeup);
	COUNT(number, opened);
	return forward(p->headers);
}

/* Its stream is complete; what carries nothing new goes on to the logger, whose TCP answers. */
static __always_inline int on_finished_connection(const struct packet *p, const struct finished *done, __u32 sensor)
{
	__s64 end = stream_offset(p->sequence, done->first, done->length) + p->length;

	if (p->length && end > (__s64)done->length) {
		COUNT(sensor, beyond_fin);
		return XDP_DROP;
	}
	COUNT(sensor, known);
	return forward(p->headers);
}

static __always_inline int on_unknown_connection(const struct packet *p)
{
	const struct sensor *sensor = find_sensor(p->headers->ip.saddr);
	struct finished *done;
	__u32 number;

	if (!sensor || !same_mac(p->headers->eth.h_source, sensor->mac)) {
		COUNT(NO_SENSOR, stranger);
		return XDP_PASS;
	}
	number = sensor->number;
	if (p->flags & TCP_SYN)
		return open(p, sensor);
	done = bpf_map_lookup_elem(&finished, &p->key);
	if (done)
		return on_finished_connection(p, done, number);
	/* The hardworker's own stack knows no such connection and resets it: the sensor connects anew. */
	if (p->length) {
		COUNT(number, no_connection);
		return XDP_PASS;
	}
	COUNT(number, bare);
	return forward(p->headers);
}

/* Sensors send no options; whoever does must not reach the stack through the marked port. */
static __always_inline int refuse_options(const struct headers *h, const void *end)
{
	const struct tcphdr *tcp = (const void *)&h->ip + h->ip.ihl * 4;

	if (h->ip.version != 4 || h->ip.ihl < 5 || h->ip.frag_off & IP_FRAGMENT_OFFSET || (void *)(tcp + 1) > end ||
	    tcp->dest != bswap16(MARK_PORT))
		return XDP_PASS;
	COUNT(NO_SENSOR, ip_options);
	return XDP_DROP;
}

SEC("xdp") int midstream_hardworker(struct xdp_md *ctx)
{
	static const __u8 hardworker_mac[ETH_ALEN] = HARDWORKER_MAC;
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct headers *h = data;
	struct connection *c;
	struct packet p = {};
	__u32 total, header;

	if ((void *)(h + 1) > end || h->eth.h_proto != bswap16(ETH_P_IP) || h->ip.daddr != bswap32(HARDWORKER_IP) ||
	    h->ip.protocol != IPPROTO_TCP || !is_marked(h->ip.tos) || !same_mac(h->eth.h_dest, hardworker_mac))
		return XDP_PASS;
	if (IP_VERSION_LENGTH(&h->ip) != IP_VERSION_4_NO_OPTIONS)
		return refuse_options(h, end);
	/* A later fragment has no TCP header, so nothing says that it is ours. */
	if (h->ip.frag_off & IP_FRAGMENT_OFFSET || h->tcp.dest != bswap16(MARK_PORT))
		return XDP_PASS;
	if (h->ip.frag_off & IP_MORE_FRAGMENTS) {
		COUNT(NO_SENSOR, fragment);
		return XDP_DROP;
	}

	total = bswap16(h->ip.tot_len);
	header = sizeof(struct iphdr) + h->tcp.doff * 4;
	if (h->tcp.doff < 5 || total < header || total > end - data - sizeof(struct ethhdr)) {
		COUNT(NO_SENSOR, bad_length);
		return XDP_DROP;
	}
	p.headers = h;
	p.flags = TCP_FLAGS(&h->tcp);
	p.length = total - header;
	p.payload_offset = sizeof(struct ethhdr) + header;
	p.sequence = bswap32(h->tcp.seq);
	p.key.ip = h->ip.saddr;
	p.key.port = h->tcp.source;
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
	return c ? on_open_connection(ctx, &p, c) : on_unknown_connection(&p);
}

/* Some helpers are for programs under the GPL only, and so is this one. */
char _license[] SEC("license") = "GPL";
