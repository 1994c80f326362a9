// SPDX-License-Identifier: GPL-2.0-only
/* The hardworker: take a copy of what the sensors send, pass the packets on to the logger.
 *
 * A byte leaves for the logger only if it is in the ring, or was before: what the logger has
 * acknowledged, the hardworker holds. Whatever cannot be held is dropped, and the sensor's own TCP
 * sends it again. Traffic that is not marked passes untouched.
 */
#include "bpf.h"
#include "checksum.h"
#include "connection.h"
#include "const.h"
#include "packet.h"
#include "quota.h"
#include "record.h"
#include "sensors.h"
#include "tables.h"

/* One marked packet, its lengths checked against the frame. */
struct packet {
	struct headers *headers;
	struct connection_key key;
	__u64 time;	      /* set where it is needed */
	__u32 sequence;	      /* this and the next two in host byte order */
	__u32 acknowledgement;
	__u32 timestamp;      /* TSval; 0: none */
	__u32 payload_offset; /* in the frame */
	__u32 length;	      /* of the payload */
	__u8 flags;
};

/* The payload is summed in blocks of so many bytes, and records have room for whole ones. */
#define BLOCK 64u
#define BLOCKS(length) (((length) + BLOCK - 1) & ~(BLOCK - 1))

/* What the logger may have sent since the sensor's last segment, in bytes. */
#define ACKNOWLEDGED_WINDOW (1 << 20)
/* For how long a connection must have been silent before a later SYN from its port is believed. */
#define SILENCE (10 * 1000000000ULL)
#define TIMESTAMP_LIFETIME (24 * 86400 * 1000000000ULL)

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

static __always_inline void describe(struct record *record, const struct packet *p, const struct connection *c,
				     __u64 offset, __u16 flags)
{
	record->offset = offset;
	record->time = p->time;
	record->connection = c->number;
	record->length = p->length;
	record->sensor = c->sensor;
	record->port = bswap16(p->key.port);
	record->flags = flags;
	record->unused = 0;
}

/* Room for a record, from the sensor's share of the ring. The verifier wants `size` to be a constant. */
static __always_inline void *reserve(__u32 sensor, const __u32 size)
{
	struct share *share = bpf_map_lookup_elem(&shares, &sensor);
	void *record;

	if (!share || !has_ring_share(share, size)) {
		COUNT(sensor, quota_full);
		return NULL;
	}
	record = bpf_ringbuf_reserve(&ring, size, 0);
	if (!record) {
		COUNT(sensor, ring_full);
		return NULL;
	}
	share->younger += size;
	return record;
}

static __always_inline bool verified(struct xdp_md *ctx, const struct packet *p, __u64 payload_sum)
{
	return !settings.check || is_intact(ctx, p->length, payload_sum);
}

/* The stream is complete: remember only what recognises its retransmissions. */
static __always_inline void finish(const struct packet *p, const struct connection *c)
{
	struct finished done = {.length = c->next, .first = c->first};
	__u32 sensor = c->sensor;

	bpf_map_update_elem(&finished, &p->key, &done, BPF_ANY);
	if (!bpf_map_delete_elem(&connections, &p->key))
		give_back_connection(sensor);
}

/* The connection ends without its stream being complete. False if another CPU was faster, or the
 * ring has no room to tell the reader.
 */
static __always_inline bool break_off(const struct packet *p, const struct connection *c)
{
	__u32 sensor = c->sensor;
	struct record *record = reserve(sensor, sizeof(*record));

	if (!record)
		return false;
	describe(record, p, c, c->next, RECORD_RESET);
	record->length = 0;
	if (bpf_map_delete_elem(&connections, &p->key)) {
		bpf_ringbuf_discard(record, settings.wakeup);
		return false;
	}
	bpf_ringbuf_submit(record, settings.wakeup);
	give_back_connection(sensor);
	return true;
}

/* The payload into the record, and its sum. The last block is cleared first, so that the sum can be
 * taken block by block.
 */
static __always_inline bool copy(struct xdp_md *ctx, const struct packet *p, struct record *record,
				 const __u32 capacity, __u64 *sum)
{
	__u32 last = p->length - 1, last_block;
	__u64 *tail;

	/* The verifier of 6.1 forgets that a length is not 0; of a masked value plus one it knows it. */
	barrier_var(last);
	last &= 0xfff;
	last_block = last & ~(BLOCK - 1);
	barrier_var(last_block);
	if (last_block > capacity - BLOCK)
		return false;
	tail = (void *)(record->payload + last_block);
	for (__u32 i = 0; i < BLOCK / 8; i++)
		tail[i] = 0;
	barrier_var(last);
	if (last >= capacity || bpf_xdp_load_bytes(ctx, p->payload_offset, record->payload, last + 1))
		return false;
	barrier_var(last); /* else the compiler would drop one of the two bounds, and a verifier miss it */
	for (__u32 block = 0; settings.check && block < capacity; block += BLOCK) {
		if (block > last)
			break;
		*sum += sum_of_words(record->payload + block, BLOCK / 4);
	}
	return true;
}

/* Store a segment in a record with room for `capacity` bytes, then forward it. The verifier wants
 * the room to be a constant. A segment of which a part is known is stored whole all the same: the
 * checksum is over the whole, and the reader cuts.
 */
static __always_inline int store(struct xdp_md *ctx, const struct packet *p, struct connection *c, const __u32 capacity)
{
	bool fin = p->flags & TCP_FIN;
	__u32 sensor = c->sensor;
	struct record *record;
	enum claim verdict;
	__u64 sum = 0;
	__s64 start;

	/* Room first: bytes once claimed must be stored. */
	record = reserve(sensor, sizeof(*record) + capacity);
	if (!record)
		return XDP_DROP;
	if ((p->length && !copy(ctx, p, record, capacity, &sum)) || !verified(ctx, p, sum)) {
		verdict = CLAIM_CORRUPT;
		goto discard;
	}

	bpf_spin_lock(&c->lock);
	start = stream_offset(p->sequence, c->first, c->next);
	verdict = claim(c, start, start + p->length, fin);
	if (verdict == CLAIM_STORED) {
		c->acknowledged = p->acknowledgement;
		c->established = 1;
		c->timestamp = p->timestamp;
	}
	if (verdict <= CLAIM_KNOWN) {
		c->seen = p->time;
		c->other_first = 0;
	}
	bpf_spin_unlock(&c->lock);
	if (verdict > CLAIM_EARLY)
		goto discard;

	describe(record, p, c, start, fin ? RECORD_FIN : 0);
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
	else if (verdict == CLAIM_CORRUPT)
		COUNT(sensor, bad_checksum);
	else
		COUNT(sensor, beyond_fin);
	return XDP_DROP;
}

/* RFC 7323, section 5: an old duplicate, perhaps of four gigabytes ago, has an old timestamp. One
 * of the connection's is itself too old to compare with after 24 days.
 */
static __always_inline bool is_stale(const struct packet *p, const struct connection *c)
{
	return p->timestamp && c->timestamp && (__s32)(p->timestamp - c->timestamp) < 0 &&
	       p->time - c->seen < TIMESTAMP_LIFETIME;
}

/* RFC 5961, section 5. The logger's replies do not pass here, so what it has sent is known only from
 * what the sensor acknowledged before.
 */
static __always_inline bool acknowledges_nonsense(const struct packet *p, const struct connection *c)
{
	__s32 ahead = p->acknowledgement - c->acknowledged;

	return c->established && (ahead > ACKNOWLEDGED_WINDOW || ahead < -ACKNOWLEDGED_WINDOW);
}

/* Its numbers are what the sensor would send next, or again, on this connection. The logger says
 * nothing while a sensor sends, so what is acknowledged stays the same.
 */
static __always_inline bool fits(const struct packet *p, const struct connection *c)
{
	__s32 ahead = p->sequence - (c->first + (__u32)c->next);

	return c->established && p->acknowledgement == c->acknowledged && ahead <= EARLY_WINDOW &&
	       ahead >= -KNOWN_WINDOW && !is_stale(p, c);
}

/* Could this be data of the connection that a later SYN asked for, and not of this one? The SYN may
 * be a stranger's, whose number lies right by chance; what the two ends said before, he cannot know.
 */
static __always_inline bool belongs_to_other(const struct packet *p, const struct connection *c)
{
	return c->other_first && p->sequence - c->other_first < KNOWN_WINDOW && !fits(p, c);
}

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
	if (belongs_to_other(p, c) && p->time - c->seen > SILENCE) {
		/* The sensor has forgotten this connection and opened another from the same port. The
		 * stack's reset makes it open one that is known from its SYN.
		 */
		if (!break_off(p, c))
			return XDP_DROP;
		COUNT(sensor, replaced);
		return XDP_PASS;
	}
	if (acknowledges_nonsense(p, c)) {
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
		COUNT(sensor, known);
		return forward(p->headers);
	}
	if (is_stale(p, c)) {
		COUNT(sensor, stale);
		return XDP_DROP;
	}
#if DATA_SIZE <= MTU - 40
	if (p->length == DATA_SIZE)
		return store(ctx, p, c, BLOCKS(DATA_SIZE));
#endif
	if (p->length <= 64)
		return store(ctx, p, c, 64);
	if (p->length <= 512)
		return store(ctx, p, c, 512);
	return store(ctx, p, c, BLOCKS(MAX_PAYLOAD));
}

/* RFC 5961, section 3: only the exact next sequence number resets; the logger challenges others. */
static __always_inline int reset(struct xdp_md *ctx, struct packet *p, struct connection *c)
{
	__u32 sensor = c->sensor;

	if (p->sequence != c->first + (__u32)c->next || p->length || !verified(ctx, p, 0)) {
		COUNT(sensor, reset_ignored);
		return forward(p->headers);
	}
	p->time = bpf_ktime_get_ns();
	if (!break_off(p, c))
		return XDP_DROP;
	COUNT(sensor, reset);
	return forward(p->headers);
}

/* An acknowledgement alone: it shows what the logger has sent, and that the sensor lives. */
static __always_inline int acknowledge(struct xdp_md *ctx, struct packet *p, struct connection *c)
{
	if (p->sequence == c->first + (__u32)c->next && p->flags & TCP_ACK && !acknowledges_nonsense(p, c) &&
	    verified(ctx, p, 0)) {
		c->acknowledged = p->acknowledgement;
		c->established = 1;
		c->seen = bpf_ktime_get_ns();
	}
	COUNT(c->sensor, bare);
	return forward(p->headers);
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
		if (p->sequence + 1 == c->first) {
			COUNT(c->sensor, known);
		} else {
			c->other_first = p->sequence + 1;
			COUNT(c->sensor, syn_ignored);
		}
		return forward(p->headers);
	}
	if (p->flags & TCP_RST)
		return reset(ctx, p, c);
	if (p->length || p->flags & TCP_FIN)
		return take(ctx, p, c);
	return acknowledge(ctx, p, c);
}

/* A SYN opens the connection here before the logger sees it. */
static __always_inline int open(struct xdp_md *ctx, struct packet *p, const struct sensor *sensor)
{
	struct connection c = {.fin = NO_FIN, .first = p->sequence + 1, .sensor = sensor->number};
	__u32 zero = 0, number = sensor->number, *last;
	struct share *share = bpf_map_lookup_elem(&shares, &number);
	struct record *record;

	last = bpf_map_lookup_elem(&last_number, &zero);
	if (!last || !share)
		return XDP_DROP;
	if (!verified(ctx, p, 0)) {
		COUNT(number, bad_checksum);
		return XDP_DROP;
	}
	if (share->open >= settings.open_quota) {
		COUNT(number, quota_full);
		return XDP_DROP;
	}
	record = reserve(number, sizeof(*record));
	if (!record)
		return XDP_DROP;
	p->time = bpf_ktime_get_ns();
	c.seen = p->time;
	c.number = __sync_fetch_and_add(last, 1) + 1;
	__builtin_memcpy(c.mac, p->headers->eth.h_source, ETH_ALEN);
	describe(record, p, &c, 0, RECORD_OPEN);

	if (bpf_map_update_elem(&connections, &p->key, &c, BPF_NOEXIST)) {
		bpf_ringbuf_discard(record, settings.wakeup);
		COUNT(number, table_full);
		return XDP_DROP;
	}
	__sync_fetch_and_add(&share->open, 1);
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
	if (p->length && (__s64)done->length - end > KNOWN_WINDOW) {
		COUNT(sensor, stale);
		return XDP_DROP;
	}
	COUNT(sensor, known);
	return forward(p->headers);
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
	p.acknowledgement = bswap32(h->tcp.ack_seq);
	if (h->tcp.doff >= 8 && (void *)(h + 1) + 8 <= end && *(__be32 *)(h + 1) == TIMESTAMP_OPTION)
		p.timestamp = bswap32(((__be32 *)(h + 1))[1]);
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
	return c ? on_open_connection(ctx, &p, c) : on_unknown_connection(ctx, &p);
}

/* Some helpers are for programs under the GPL only, and so is this one. */
char _license[] SEC("license") = "GPL";
